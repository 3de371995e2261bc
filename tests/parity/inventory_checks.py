"""Names, shapes and optimiser groups of the full ViT-L network."""

import math

import torch
from recording import Recording
from sizes import config_from_shapes, meta_model

from crossearth.model.weights.names import to_ours, to_released


def check_names(recording: Recording) -> None:
    """All released names map one to one onto ours, with equal shapes; the stored ones are trained."""
    listed = recording.json("vitl_keys.json")
    if listed is None:
        return
    shapes = {name: entry["shape"] for name, entry in listed["keys"].items()}
    model = meta_model(config_from_shapes(shapes))
    state = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    renamed = {to_ours(name): shape for name, shape in shapes.items()}
    one_to_one = len(renamed) == len(shapes) and all(to_released(str(ours)) in shapes for ours in renamed)
    recording.check("vitl_keys.json: one to one", one_to_one, f"{len(renamed)} of {len(shapes)} names")
    wrong = [name for name in state.keys() | renamed.keys() if state.get(name) != renamed.get(name)]
    recording.check("vitl_keys.json: names and shapes", not wrong, f"{len(wrong)} differ")
    stored = {to_ours(name) for name, entry in listed["keys"].items() if entry["in_official_state_dict"]}
    trained = set(model.trained_parameters())
    recording.check("vitl_keys.json: trained = stored", stored == trained, f"{len(trained)} trained")
    count = sum(math.prod(shape) for shape in state.values())
    recording.check("vitl_keys.json: number of names", listed["n_keys"] == len(state), str(len(state)))
    recording.check("vitl_keys.json: number of parameters", listed["n_params"] == count, str(count))


def check_optimiser_groups(recording: Recording) -> None:
    """Learning rate and weight decay of every trained parameter."""
    recorded = recording.json("optim_groups_vitl.json")
    listed = recording.json("vitl_keys.json")
    if recorded is None or listed is None:
        return
    from crossearth.model.training.multitask import parameter_groups

    shapes = {name: entry["shape"] for name, entry in listed["keys"].items()}
    model = meta_model(config_from_shapes(shapes))
    names = {id(parameter): to_released(name) for name, parameter in model.named_parameters()}
    for variant, values in recorded.items():
        base_lr, base_decay = (_number(values["optimizer"], key) for key in ("lr", "weight_decay"))
        groups = torch.optim.AdamW(parameter_groups(model, base_decay), lr=base_lr).param_groups
        ours = {
            names[id(parameter)]: (group["lr"], group["weight_decay"], list(parameter.shape))
            for group in groups
            for parameter in group["params"]
        }
        theirs = {name: (lr, decay, shape) for name, lr, decay, shape in values["groups"]}
        wrong = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
        recording.check(
            f"optim_groups_vitl.json: {variant}", not wrong, f"{len(wrong)} of {len(theirs)} differ"
        )
        count = sum(math.prod(shape) for *_, shape in ours.values())
        recording.check(
            f"optim_groups_vitl.json: {variant} trained", count == values["n_trainable"], str(count)
        )


def _number(text: str, key: str) -> float:
    """A number out of the printed settings of the optimiser."""
    return float(text.split(f"'{key}': ")[1].split(",")[0].rstrip("}"))
