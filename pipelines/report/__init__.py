"""`packtrain report`: what a run left in its files, as one HTML page that needs nothing else."""
