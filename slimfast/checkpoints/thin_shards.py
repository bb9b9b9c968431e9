"""What the pruning of a checkpoint has written: thin shards, loaded as a network or for other loaders."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from torch import Tensor, nn

from slimfast.checkpoints.repairing import report_from_json
from slimfast.checkpoints.shard_folder import INDEX, REPAIR, alone, check_shards, read_index
from slimfast.errors import SlimfastError
from slimfast.graph.recording.forward import PROCESS_LOCK
from slimfast.graph.recording.module_copies import aliases, named_tensors
from slimfast.pruning.manifests import Manifest
from slimfast.pruning.repair.report import RepairReport, attach_report
from slimfast.storage.atomic import cannot_write, check_file, output_folder, reason_of
from slimfast.storage.documents import parse_object
from slimfast.storage.tensor_documents import KEY
from slimfast.storage.weights import open_weights


def load_checkpoint(folder: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load the thin network in a folder of :func:`prune_checkpoint`: a copy of the wide ``model`` with its
    tensors.

    All files are read once, against their checksums. The tensors are maps of the files until they are written
    to or moved.

    Args:
        folder: The folder.
        model: The wide network. It is untouched and may be on the meta device, but for buffers that no
            checkpoint holds, which are cut from its own.

    Returns:
        The thin network, with the report of its repair where there was one.

    Raises:
        SlimfastError: For whatever does not match, and for a file that is damaged, by its name.

    Example:
        thin = slimfast.load_checkpoint("thin", model)
    """
    index = check_file(Path(folder) / INDEX)
    described = Manifest.from_json(read_index(folder).string(KEY), what=f"{index}: manifest")
    weights, wide, further = open_weights(index), named_tensors(model), aliases(model)
    if {name: tuple(tensor.shape) for name, tensor in wide.items()} != dict(described.shapes_before):
        raise SlimfastError(f"{index}: expected the wide model it was cut from, got another")
    check_shards(folder)
    stored = {further.get(name, name): name for name in weights.infos}
    tensors: dict[str, Tensor] = {}
    for name, shape in described.shapes().items():
        if name not in stored:
            if wide[name].is_meta or isinstance(wide[name], nn.Parameter):
                raise SlimfastError(f"{index}: {name} is not stored and has no values in the model")
            tensors[name] = described.slice_of(name, wide[name])
        elif weights.infos[stored[name]].shape != shape:
            raise SlimfastError(
                f"{index}: {name}: expected shape {shape}, got {weights.infos[stored[name]].shape}"
            )
        else:
            device = "cpu" if wide[name].is_meta else wide[name].device
            tensors[name] = weights.load(stored[name]).to(device)
    thin = described.thin_copy(model, tensors, what=str(index))
    report = stored_report(folder)
    if report is not None:
        attach_report(thin, report)
    return thin


def stored_report(folder: str | os.PathLike[str]) -> RepairReport | None:
    """Read the report of the repair in a folder of :func:`slimfast.prune_checkpoint`; None without one."""
    fields = read_index(folder)
    return report_from_json(fields.object(REPAIR)) if fields.has(REPAIR) else None


def is_thin_folder(folder: str | os.PathLike[str]) -> bool:
    """Say whether a folder is one of :func:`slimfast.prune_checkpoint`."""
    index = Path(folder) / INDEX
    if not index.is_file():
        return False
    try:
        fields = parse_object(index.read_bytes(), str(index)).object("metadata")
    except SlimfastError:
        return False
    return KEY in fields.names()


def export_dcp(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write the thin tensors of a folder of :func:`prune_checkpoint` for ``torch.distributed.checkpoint``.

    FSDP loads them from the new folder.

    Args:
        folder: The folder of thin shards.
        target: The folder to write.

    Raises:
        SlimfastError: Where ``target`` holds a checkpoint already, or cannot be written.

    Example:
        slimfast.export_dcp("thin", "thin-dcp")
        torch.distributed.checkpoint.load({"model": state}, checkpoint_id="thin-dcp")
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    weights = open_weights(Path(folder) / INDEX)
    check_shards(folder)
    made = output_folder(target)
    with alone(made):
        if (made / ".metadata").exists():
            raise cannot_write(made, "it holds a checkpoint already")
        try:
            with PROCESS_LOCK, warnings.catch_warnings():
                # It warns that it does what it is asked: to save from one process.
                warnings.simplefilter("ignore")
                # The index is written last, and renamed when whole.
                save(
                    {name: weights.load(name) for name in weights.infos},
                    storage_writer=FileSystemWriter(made),
                    no_dist=True,
                )
        except CheckpointException as error:
            # Its own message is a traceback; there is one process, and so one failure.
            cause = next((failure for failure, _ in error.failures.values()), error)
            raise cannot_write(made, reason_of(cause)) from error
        except (OSError, RuntimeError) as error:
            raise cannot_write(made, error) from error
