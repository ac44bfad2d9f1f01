"""Raw or tokenized data to packed Arrow shards. CPU only; never imports torch."""
