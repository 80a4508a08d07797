"""recipes.md, read off the recipes."""

from tid_core.recipes import RECIPES

TEXT = """# Recipes

`recipe: coco_1x` in a job fills in what its sections `student`, `data`, `training` and `evaluation` leave out; what the
job itself says wins, field by field. The resolved spec (`tid show --spec JOB`) holds all of it, and the recipe's name.
`tid recipes NAME` and `GET /recipes` show one in full; the table leaves out what is the [job spec](job-spec.md)'s
default anyway.

**The learning rate follows the batch.** A recipe sets `training.lr_scaling`: a rate, the batch that it is for, and how
it moves with another: linearly for SGD (twice the batch, twice the rate; Goyal et al., arXiv 1706.02677), by the root
for AdamW (Malladi et al., arXiv 2205.10287). The resolved spec holds both, such as `lr: 0.005` beside
`lr_scaling: {lr: 0.01, images: 16, rule: linear}` for batches of 8, and one in which the two disagree is refused. A job
that gives `lr` is taken at its word.

**The backbone.** Where ImageNet weights exist and a recipe is `pretrained`, they are used, their batch normalisation
frozen. From scratch (`weights: null`, or a backbone without such weights) it is group normalisation, since the
statistics of small batches are poor. Weights of a whole detector keep the normalisation they were trained with, and a
recipe that is not `pretrained` leaves it to the detector.

**Several short sides**: one is drawn per image in training; validation uses the last one of the list. Large-scale
jitter is `data: {scale_jitter: [0.1, 2.0]}`, on top of any recipe.

Schedules and sizes of `coco_*` are the usual ones of papers; those of `voc_1x` follow mmdetection's VOC configuration.
`small_data` and `cpu_smoke` are this project's own choices.
"""


def recipes_page() -> str:
    recipes = list(RECIPES.values())
    fields = dict.fromkeys(
        (section, key) for section in ("data", "training", "evaluation") for r in recipes for key in getattr(r, section)
    )
    rows = {"pretrained": ["yes" if r.pretrained else "no" for r in recipes]}
    rows |= {f"`{section}.{key}`": [_value(r.name, section, key) for r in recipes] for section, key in fields}
    for rule in ("sgd", "adamw"):
        rows[f"lr with {rule}"] = [f"{r.lr[rule]['lr']:g} per {r.lr[rule]['images']}" for r in recipes]
    lines = [TEXT, _row("", [f"`{r.name}`" for r in recipes]), "|---" * (len(recipes) + 1) + "|"]
    lines += [_row(name, values) for name, values in rows.items()]
    lines += ["", *(f"- `{r.name}`: {r.title}" for r in recipes)]
    return "\n".join(lines) + "\n"


def _row(name: str, values: list[str]) -> str:
    return f"| {name} | {' | '.join(values)} |"


def _value(recipe: str, section: str, key: str) -> str:
    values = getattr(RECIPES[recipe], section)
    value = values.get(key, "")
    if key == "milestones" and value:
        return "after epoch " + " and ".join(f"{round(part * values['epochs'])}" for part in value)
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
