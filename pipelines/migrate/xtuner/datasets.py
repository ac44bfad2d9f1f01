"""Sources and packs, of XTuner's data sets."""

from collections.abc import Mapping
from typing import get_args

from pipelines.migrate.config_tree import Node, Symbol, listed
from pipelines.migrate.draft import Draft, Rule, asks, drops, only, same, to
from pipelines.migrate.origins import add_source, map_data, need_source, stem
from pipelines.migrate.xtuner.names import last_name
from pipelines.schema import MapName


def map_datasets(draft: Draft) -> bool:
    """[[prep.source]] and [prep.pack]; whether packs are those of build_packed_dataset."""
    config = draft.config
    root = config.at("train_dataloader.dataset") or config.at("train_dataset")
    datasets = listed(root.at("datasets")) if root and root.at("datasets") else [root] if root else []
    if root and root.at("datasets"):
        draft.same(root.at("type"), "every data set is a [[prep.source]]")
    packed = exact = False
    for dataset in datasets:
        kind, inner = last_name(dataset.get("type")), last_name(dataset.get("dataset_cfg.type"))
        if kind == "build_packed_dataset" and inner.startswith("load_intern_repo"):
            _intern_repo(draft, dataset)
            packed = exact = True
        elif kind in ("process_hf_dataset", "process_ms_dataset"):
            packed |= _hugging_face(draft, dataset)
        else:
            draft.decide(dataset, f"data sets of {kind or 'this kind'} are not known; write a [[prep.source]]")
    need_source(draft)
    for node in (config.at("model.use_varlen_attn"), config.at("use_varlen_attn")):
        if node is not None:
            _attention(draft, node, packed=packed)
    return exact


def _attention(draft: Draft, node: Node, *, packed: bool) -> None:
    if node.get("") is False and packed:
        draft.map(node, "prep.pack.cross_sample_attention", True, note="samples of a pack see each other, as there")
    else:
        draft.same(node, "attention never crosses samples")


def _intern_repo(draft: Draft, dataset: Node) -> None:
    """build_packed_dataset: the packs of a run there, token for token."""
    folder = dataset.at("dataset_cfg.folder")
    index = add_source(draft, stem(folder.get("")) if folder else "data")
    if folder is not None:
        map_data(draft, folder, index)
    else:
        draft.ask(f"prep.source.{index}.path", "data", "name the directory of the data")
    tokenized = last_name(dataset.get("dataset_cfg.type")) == "load_intern_repo_tokenized_dataset"
    if tokenized:
        draft.same(dataset.at("dataset_cfg.type"), 'format = "auto" knows .bin files with their .meta')
        draft.put(f"prep.source.{index}.map", "none", "tokenized data")
    else:
        draft.decide(
            dataset.at("dataset_cfg.type"), "its records are bare lists of messages; write a python: map for them"
        )
    ending = dataset.at("dataset_cfg.file_type")
    pattern = f"**/*{ending.get('') if ending else '.bin'}"
    if ending is not None:
        draft.map(ending, f"prep.source.{index}.files", [pattern])
    else:
        draft.put(f"prep.source.{index}.files", [pattern], "XTuner's default")
    order = dataset.at("dataset_cfg.data_order_path")
    if order is not None and order.get("") is not None:
        draft.map(order, "prep.order.file", note="is honoured line by line", keep=True)
    else:
        what = "without a data_order.txt XTuner took folders as the file system listed them; put that of its run here"
        draft.decide(order, what)
        if order is None:
            draft.notes.append(what)
    template = dataset.at("dataset_cfg.template_map_fn")
    if template is not None:
        _template(draft, template, index)
    draft.rules(dataset, {f"dataset_cfg.{key}": rule for key, rule in INTERN_REPO.items()})
    draft.rules(dataset, PACKED)
    draft.put("prep.order.shuffle", "xtuner", "file by file, as build_packed_dataset")
    draft.put("prep.pack.strategy", "concat_split", "as build_packed_dataset")
    draft.put("prep.pack.scope", "file", "as build_packed_dataset")
    draft.put("prep.pack.drop_last", True, "as build_packed_dataset")
    draft.put("template.loss.on_empty", "keep", "as build_packed_dataset")
    if index:
        draft.put("prep.order.interleave", "concat", "data sets follow each other")


def _hugging_face(draft: Draft, dataset: Node) -> bool:
    """process_hf_dataset; whether it packs."""
    loader = dataset.at("dataset")
    files = _files(draft, dataset, loader.at("data_files") if loader else None)
    named = dataset.resolved().path[-1] if len(dataset.resolved().path) == 1 else ""
    label = str(named) if named not in ("", "train_dataset") else ""
    path = loader.at("path") if loader else None
    if not files and path is not None:
        files = [path]
    indices = []
    found: list[Node | None] = [*files] or [None]
    for file in found:
        name = label if label and len(files) < 2 else stem(file.get("")) if file else ""
        index = add_source(draft, name or "data")
        indices.append(index)
        if file is not None:
            map_data(draft, file, index)
        else:
            draft.ask(f"prep.source.{index}.path", "data", "name the file or the directory of the data")
        _record_map(draft, dataset, index)
        if last_name(loader.get("type") if loader else None) == "load_from_disk":
            draft.put(f"prep.source.{index}.format", "hf_disk", "load_from_disk")
    if len(indices) > 1:
        draft.put("prep.pack.scope", "global", "one data set of several files was packed as one")
    template = dataset.at("template_map_fn")
    for index in indices:
        if template is not None:
            _template(draft, template, index)
    if loader is not None:
        draft.rules(loader, LOADER)
    packs, most = dataset.at("pack_to_max_length"), dataset.at("max_dataset_length")
    if most is not None and most.get("") is not None:
        note = "the first of the hash order, there a random draw"
        draft.map(most, f"prep.source.{indices[0]}.samples", note=note)
    draft.rules(dataset, HUGGING_FACE)
    if ("prep", "pack", "capacity") not in draft.keys:
        draft.ask("prep.pack.capacity", 2048, "the config has no max_length")
    draft.put("prep.max_length", draft.keys[("prep", "pack", "capacity")].value, "a sample is cut there")
    draft.put("prep.overlength", "truncate_right", "as process_hf_dataset")
    draft.put("template.loss.on_empty", "drop", "as process_hf_dataset")
    in_order = dataset.get("shuffle_before_pack") is False
    if packs is not None and packs.get("") is False:
        draft.map(packs, "prep.pack.strategy", "none")
        _as_in_files(draft)
        return False
    note = "the stream is cut every max_length tokens" + ("" if in_order else f"; {_BY_CHANCE}")
    draft.map(packs, "prep.pack.strategy", "concat_split", note=note)
    draft.put("prep.pack.strategy", "concat_split", f"XTuner's default; {note}")
    draft.put("prep.pack.drop_last", True, "as process_hf_dataset")
    if in_order:
        _as_in_files(draft)
        _one_stream(draft, dataset)
    return True


def _files(draft: Draft, dataset: Node, where: Node | None) -> list[Node]:
    """The files of load_dataset: one, several, or these by split, of which one is taken."""
    if where is None or where.resolved().is_leaf:
        return [where] if where is not None else []
    if where.resolved().is_list:
        return listed(where)
    split = dataset.get("split") if dataset.at("split") else "train"
    taken = [one for name, one in where.items().items() if split in (None, name)]
    for one in where.items().values():
        if one not in taken:
            draft.drop(one, f"not of the split {split}, which is trained on")
    return [file for one in taken for file in _files(draft, dataset, one)]


def _as_in_files(draft: Draft) -> None:
    """Samples in the order of their files, which the sampler then permutes."""
    draft.put("prep.order.shuffle", "none", "as process_hf_dataset")
    if ("prep", "source", 1, "name") in draft.keys:
        draft.put("prep.order.interleave", "concat", "data sets follow each other")


def _one_stream(draft: Draft, dataset: Node) -> None:
    processes = dataset.get("map_num_proc") if dataset.at("map_num_proc") else _PROCESSES
    if processes != 1:
        draft.notes.append(
            f"prep.pack: there {processes} processes (map_num_proc) packed a part of the samples each and left out the "
            "end of it; here it is one stream, so only the packs of the first part are the same"
        )


def _record_map(draft: Draft, dataset: Node, index: int) -> None:
    node = dataset.at("dataset_map_fn")
    value = node.get("") if node else None
    key = f"prep.source.{index}.map"
    if value is None:
        what = 'records with "messages" are map = "openai", the default; with "conversation" of XTuner they need a map'
        draft.same(node, what)
        return
    name = last_name(value) if isinstance(value, Symbol) else str(value)
    name = name.removesuffix("_map_fn").removesuffix("_factory")
    if name in get_args(MapName):
        draft.map(node, key, name, keep=True)
    elif node is not None:
        draft.decide(node, f"no map here is called {name}; see prep.source.map, or python:module:function for your own")


def _template(draft: Draft, node: Node, index: int) -> None:
    if not node.items() and node.get("") is None:
        draft.map(node, "template.name", "none", note="plain text")
        return
    draft.same(node.at("type"), "prep renders the template")
    found = node.at("template")
    value = found.get("") if found else None
    if not isinstance(value, Symbol):
        draft.decide(found or node, 'give it as a Jinja file: template.name = "custom" and template.file')
        return
    named = draft.keys.get(("template", "name"))
    if named is None or named.value == value.last:
        draft.map(found, "template.name", value.last, keep=True)
    else:
        draft.map(found, f"prep.source.{index}.template", value.last)


def _shuffled(draft: Draft, node: Node) -> None:
    if node.get("") is False:
        draft.map(node, "prep.order.shuffle", "none")
    else:
        draft.map(node, "prep.order.shuffle", "hash", note=_BY_CHANCE)


_PROCESSES = 32  # XTuner's default of map_num_proc
_BY_CHANCE = "samples in an order of their own, as that there was drawn by chance"

PACKED: Mapping[str, Rule] = {
    "type": same("prep.pack"),
    "packed_length": to("prep.pack.capacity", keep=True),
    "seed": to("run.seed"),
}
INTERN_REPO: Mapping[str, Rule] = {
    "min_length": to("prep.min_length"),
    "max_length": to("prep.max_length"),
    "tokenizer": same("[tokenizer]"),
    "map_num_proc": to("prep.workers"),
    "processed_dataset_dict_path": only(None, "not set", "prep keeps its shards in run.work_dir"),
}
LOADER: Mapping[str, Rule] = {
    "type": same("format = auto goes by the file's ending"),
    "path": drops("format = auto goes by the file's ending"),
    "split": only("train", "the whole source", "give the split's file"),
    "name": asks("name the configuration's file in prep.source.path"),
}
HUGGING_FACE: Mapping[str, Rule] = {
    "type": same("prep"),
    "tokenizer": same("[tokenizer]"),
    "max_length": to("prep.pack.capacity", keep=True),
    "max_dataset_length": same("not set"),
    "split": only("train", "the whole source", "give the split's file"),
    "remove_unused_columns": drops("a map reads the keys that it names"),
    "rename_maps": asks("write it as prep.source.columns = { new = old }"),
    "shuffle_before_pack": _shuffled,
    "use_varlen_attn": same("see model.use_varlen_attn"),
    "input_ids_with_output": only(True, "so it is", "training is on answers"),
    "with_image_token": only(False, "so it is", "images are not offered"),
    "map_num_proc": to("prep.workers"),
}
