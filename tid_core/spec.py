"""The job: what a user asks for, as data. Free of torch, so that the API can check a job without it.

Unknown fields are refused, ranges are checked, and every default is written down here, so that
`JobSpec.model_validate(...).model_dump()` is the complete record of a run.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tid_core.fields import Count, Fraction, Model, NonNegative, Positive, Steps, Text
from tid_core.methods import (
    METHODS,
    BckdSpec,
    CrosskdSpec,
    CwdSpec,
    DefeatSpec,
    FgdSpec,
    FgfiSpec,
    FitnetSpec,
    FrsSpec,
    LdSpec,
    Method,
    MgdSpec,
    PgdSpec,
    PkdSpec,
    TarSpec,
    TbdSpec,
    Teaching,
    TidSpec,
)
from tid_core.recipes import RECIPES, fill_in, known_recipe
from tid_core.text import plain_path


class FileWeights(Model):
    """A checkpoint on disk: safetensors, or a plain state_dict read with `weights_only=True`.

    A student may also start from a torchvision classifier's file, which then fills its backbone.
    """

    file: Annotated[Path, AfterValidator(plain_path)] = Field(
        description="Path of a .safetensors or .pt/.pth file, under an allowed root."
    )
    classes: list[Text] | None = Field(
        None, description="Class names in the order of the file's outputs; null = the dataset's own classes."
    )


class JobWeights(Model):
    """The checkpoint of an earlier job."""

    job: Text = Field(description="Id of a job that succeeded.", min_length=1)
    checkpoint: str = Field("best", description="best, last or epoch-N.", pattern=r"^(best|last|epoch-\d+)$")


Weights = Annotated[
    FileWeights | JobWeights | Text | None,
    Field(
        description="A torchvision weights name such as COCO_V1, `imagenet` (backbone only), {file: path}, "
        "{job: id, checkpoint: best}, or null for random initialisation."
    ),
]


class TeacherSpec(Model):
    """The detector that is imitated. Its classes meet the dataset's by name."""

    detector: Text | None = Field(None, description="A name of GET /detectors; null = the detector of the teacher job.")
    weights: FileWeights | JobWeights | Text = Field(
        description="A torchvision weights name, {file: path} or {job: id, checkpoint: best}."
    )
    cache: bool = Field(
        False,
        description="Keep its outputs on disk until the run ends, to compute each once. Needs images that look the "
        "same in every epoch: data.flip 0, photometric 0, no scale_jitter, one min_size.",
    )

    @model_validator(mode="after")
    def _has_a_detector(self) -> Self:
        if self.detector is None and not isinstance(self.weights, JobWeights):
            raise ValueError("teacher.detector may only be left out when teacher.weights names a job")
        return self


class StudentSpec(Model):
    """The detector that is trained and handed out."""

    detector: Text = Field(description="A name of GET /detectors.")
    weights: Weights = None
    inherit: list[Literal["neck", "head"]] = Field(
        default_factory=list, description="Parts copied from the teacher where every shape agrees."
    )
    norm: Literal["auto", "batch", "frozen", "group"] = Field(
        "auto",
        description="Of the backbone. auto: as torchvision does it with its weights (frozen BatchNorm; RetinaNet v2: "
        "BatchNorm), as a checkpoint was trained, or BatchNorm from scratch.",
    )
    trainable_layers: Annotated[int, Field(ge=0, le=6)] | None = Field(
        None, description="Backbone stages left trainable; null = 3 with torchvision weights (its default), else all."
    )


class LossSpec(Model):
    """Weights of the total loss: L = task * L_task + distill * L_distill."""

    task: Positive = Field(1.0, description="Weight of the detector's own loss.")
    distill: NonNegative = Field(1.0, description="lambda, the weight of the distillation term.")
    high: NonNegative = Field(2.0, description="Weight of high-value areas (TID).")
    medium: NonNegative = Field(1.0, description="Weight of medium-value areas (TID).")
    low: NonNegative = Field(0.1, description="Weight of low-value areas (TID).")
    schedule: Literal["constant", "warmup", "linear_decay", "cosine_decay"] = Field(
        "constant", description="How the weight of the distillation term moves over the run."
    )
    warmup_steps: Steps = Field(500, description="Steps of the `warmup` schedule.")


class DataSpec(Model):
    """How images reach the detector. Sizes are in pixels and follow torchvision's detection transform."""

    min_size: list[Count] = Field(
        default_factory=lambda: [800],
        min_length=1,
        description="Short side; several = one drawn per image in training, and the last one in validation.",
    )
    max_size: Count = Field(1333, description="Long side at most.")
    flip: Fraction = Field(0.5, description="Probability of a horizontal flip.")
    photometric: Fraction = Field(0.0, description="Probability of photometric distortion.")
    scale_jitter: tuple[Positive, Positive] | None = Field(
        None, description="Range of a random zoom, e.g. [0.8, 1.2]; [0.1, 2.0] is large-scale jitter."
    )
    workers: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="Loader processes of each GPU; 0 = in the training process."
    )
    invalid_boxes: Literal["drop", "refuse"] = Field("drop", description="What to do with boxes that cannot be used.")
    drop_empty: bool = Field(False, description="Leave out training images without boxes.")


class LrScalingSpec(Model):
    """A learning rate for batches of one size, and how it follows the batch that is trained with."""

    lr: Positive = Field(description="Peak learning rate for batches of `images`.")
    images: Count = Field(description="The batch that `lr` is for.")
    rule: Literal["linear", "sqrt"] = Field(
        "linear", description="linear: lr x batch_size / images, for sgd; sqrt: by the root of it, for adamw."
    )

    def at(self, batch_size: int) -> float:
        factor = batch_size / self.images
        return self.lr * (factor if self.rule == "linear" else math.sqrt(factor))


class TrainingSpec(Model):
    """Optimiser, schedule and what surrounds them."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(12, description="Passes over the training split.")
    batch_size: Count = Field(16, description="Images per optimiser step, over all GPUs and accumulation.")
    accumulate: Count = Field(1, description="Backward passes per optimiser step; divides batch_size.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="The rule that moves the weights.")
    lr: Positive = Field(0.01, description="Peak learning rate, for batch_size images.")
    lr_scaling: LrScalingSpec | None = Field(
        None,
        description="Gives lr where it is left out; recipes set it. Where both stand, they must agree.",
    )
    momentum: Fraction = Field(0.9, description="Momentum of sgd.")
    weight_decay: NonNegative = Field(1e-4, description="Not applied to biases and normalisation layers.")
    schedule: Literal["multistep", "cosine", "constant"] = Field("multistep", description="The learning rate's course.")
    milestones: list[Fraction] = Field(
        default_factory=lambda: [8 / 12, 11 / 12], description="Drops of `multistep`, as fractions of the run."
    )
    gamma: Fraction = Field(0.1, description="Factor at each milestone.")
    warmup_steps: Steps = Field(500, description="Linear warm-up, in optimiser steps.")
    warmup_factor: Fraction = Field(0.001, description="Factor of the learning rate at the first step.")
    clip_grad_norm: Positive | None = Field(None, description="Maximum gradient norm; null = none.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, fp16 on one that does not, fp32 on CPU."
    )
    channels_last: bool = Field(False, description="NHWC memory layout.")
    ema: bool = Field(False, description="Evaluate and export an exponential moving average of the student.")
    ema_decay: Fraction = Field(0.9998, description="Decay of the moving average per step.")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(0, description="Initialisation, data order, augmentation.")
    deterministic: bool = Field(False, description="Deterministic kernels on GPU (always on for CPU).")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one.")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="CPU threads of the training, divided among its processes; 0 = all cores."
    )
    save_every_steps: Steps = Field(0, description="Resume states between epochs; 0 = none.")
    log_every_steps: Count = Field(10, description="Optimiser steps between metric points.")
    keep_epochs: bool = Field(False, description="Keep a checkpoint epoch-N after each evaluation.")

    @model_validator(mode="before")
    @classmethod
    def _scale_lr(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("lr_scaling") is None or data.get("lr") is not None:
            return data
        try:
            batch_size = int(data.get("batch_size", cls.model_fields["batch_size"].default))
            lr = LrScalingSpec.model_validate(data["lr_scaling"]).at(max(1, batch_size))
        except (TypeError, ValueError, OverflowError):  # told by the fields themselves
            return data
        return {**data, "lr": lr}

    @model_validator(mode="after")
    def _lr_is_scaled(self) -> Self:
        expected = self.lr if self.lr_scaling is None else self.lr_scaling.at(self.batch_size)
        if not math.isclose(self.lr, expected, rel_tol=1e-6):
            raise ValueError(
                f"training.lr ({self.lr:g}) is not what training.lr_scaling makes of it for batches of "
                f"{self.batch_size} ({expected:g}); leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"training.batch_size ({self.batch_size}) must be a multiple of training.accumulate ({self.accumulate})"
            )
        return self


Metric = Literal["coco", "voc"]


class EvaluationSpec(Model):
    """Evaluation on the validation split."""

    metrics: list[Metric] = Field(
        default_factory=lambda: list[Metric](["coco"]),
        description="voc adds VOC07_mAP (11 points) and VOC_mAP (area) at IoU 0.5 by the VOC devkit's rules. coco "
        "stays: the best checkpoint is the one with the best COCO AP.",
    )
    every_epochs: Count = Field(1, description="Epochs between evaluations; the last one is always evaluated.")
    batch_size: Count = Field(16, description="Images per forward.")
    max_detections: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="Detections kept per image.")
    score_threshold: Fraction = Field(0.05, description="Detections below it are dropped.")
    nms_threshold: Fraction = Field(0.6, description="IoU of non-maximum suppression.")
    backend: Literal["hotcoco", "pycocotools"] = Field("hotcoco", description="Evaluator; both give equal numbers.")
    teacher: bool = Field(
        True, description="Evaluate the teacher once, so that the gain has a ceiling to read against."
    )
    maps: Annotated[int, Field(ge=0, le=64)] = Field(
        4, description="Validation images drawn with their TID areas, where there is a teacher."
    )
    map_epochs: list[Count] = Field(
        default_factory=list,
        max_length=100,
        description="Epochs after which they are drawn, beside the best student at the end; sorted, each once.",
    )

    @field_validator("map_epochs")
    @classmethod
    def _each_epoch_once(cls, epochs: list[int]) -> list[int]:
        return sorted(set(epochs))

    @model_validator(mode="after")
    def _metrics_have_coco(self) -> Self:
        if "coco" not in self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"evaluation.metrics must be [coco] or [coco, voc], not [{', '.join(self.metrics)}]")
        return self


class ResourcesSpec(Model):
    """What a run needs of the machines."""

    gpus: Annotated[int, Field(ge=0, le=64)] = Field(
        1,
        description="GPUs of each node, with a process on each: two or more need a worker that has them; one is used "
        "where there is one. With `training.device: cpu` that many processes share the CPU. `tid train` uses what the "
        "host has.",
    )
    min_gpu_memory_gib: Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)] | None = Field(
        None,
        description="Least memory of each GPU, as `GET /workers` tells it: one sold with 24 GB has 22 to 24 GiB. "
        "null = any, and one GPU is not insisted on.",
    )
    nodes: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="Workers that train the job together, each with `gpus`; `tid train` has one."
    )
    queue: str = Field(
        "default", description="Workers of this queue take the job.", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$"
    )
    priority: Annotated[int, Field(ge=0, le=9)] = Field(
        5, description="Of the jobs that wait in a queue the lowest number goes first; of equals, the oldest."
    )
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(3, description="Attempts before the job fails for good.")

    @property
    def min_gpu_memory_mib(self) -> int:
        """0 = any."""
        return math.ceil((self.min_gpu_memory_gib or 0) * 1024)

    @model_validator(mode="after")
    def _memory_is_of_a_gpu(self) -> Self:
        if self.min_gpu_memory_gib is not None and not self.gpus:
            raise ValueError(
                "resources.min_gpu_memory_gib is of GPUs, and resources.gpus is 0; leave one of the two out"
            )
        return self


def _section() -> Any:
    return Field(None, description="Filled in where the method is used.")


class JobSpec(Model):
    """One distillation (or, with `teacher: null`, one plain training)."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="JobSpec")

    name: Text = Field("job", min_length=1, max_length=120, description="For people; need not be unique.")
    recipe: Annotated[Text, AfterValidator(known_recipe)] | None = Field(
        None,
        description="A name of GET /recipes: fills in what student, data, training and evaluation leave out.",
    )
    teacher: TeacherSpec | None = Field(None, description="null = plain training of the student.")
    student: StudentSpec
    dataset: Text = Field(min_length=1, description="Name or id of a registered dataset; `tid train`: a folder.")
    method: Method | Annotated[list[Teaching], Field(min_length=1, max_length=3)] = Field(
        "tid",
        description="How the teacher is imitated; plain training uses `none`. Several, e.g. [tid, pkd], are added, "
        "each with the `weight` of its section.",
    )
    loss: LossSpec = Field(default_factory=LossSpec)
    tid: TidSpec = Field(default_factory=TidSpec)
    fitnet: FitnetSpec | None = _section()
    fgfi: FgfiSpec | None = _section()
    defeat: DefeatSpec | None = _section()
    fgd: FgdSpec | None = _section()
    mgd: MgdSpec | None = _section()
    cwd: CwdSpec | None = _section()
    pkd: PkdSpec | None = _section()
    frs: FrsSpec | None = _section()
    pgd: PgdSpec | None = _section()
    ld: LdSpec | None = _section()
    crosskd: CrosskdSpec | None = _section()
    bckd: BckdSpec | None = _section()
    tbd: TbdSpec | None = _section()
    tar: TarSpec | None = _section()
    data: DataSpec = Field(default_factory=DataSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    baseline: bool = Field(True, description="Also run the same student, recipe and seed without distillation.")

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("recipe"), str) and data["recipe"] in RECIPES:
            return fill_in(data)
        return data

    @model_validator(mode="before")
    @classmethod
    def _plain_training(cls, data: Any) -> Any:
        """Without a teacher the only method is `none` and there is nothing to compare with."""
        if isinstance(data, dict) and data.get("teacher") is None:
            return {"method": "none", "baseline": False, **data}
        return data

    @field_validator("method")
    @classmethod
    def _methods_differ(cls, method: str | list[str]) -> str | list[str]:
        if isinstance(method, str):
            return method
        if len(set(method)) < len(method):
            raise ValueError(f"[{', '.join(method)}] names a method twice; its `weight` makes it count for more")
        return method if len(method) > 1 else method[0]

    @field_validator("method")
    @classmethod
    def _method_has_a_teacher(cls, method: str | list[str], info: ValidationInfo) -> str | list[str]:
        if method != "none" and info.data.get("teacher", method) is None:
            name = method if isinstance(method, str) else "+".join(method)
            raise ValueError(f"method {name!r} needs a teacher; set `teacher`, or `method: none`")
        return method

    @field_validator("baseline")
    @classmethod
    def _baseline_has_a_teacher(cls, baseline: bool, info: ValidationInfo) -> bool:
        if baseline and info.data.get("teacher", baseline) is None:
            raise ValueError("baseline: true compares with distillation; without a teacher set it to false")
        return baseline

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_methods(cls, data: Any) -> Any:
        """The record of a run has every setting of the methods that it uses, and of those alone if not told more."""
        if not isinstance(data, dict):
            return data
        method = data.get("method", "tid")
        used = [method] if isinstance(method, str) else method if isinstance(method, list) else []
        missing = [name for name in used if isinstance(name, str) and name in METHODS and data.get(name) is None]
        return {**data, **{name: {} for name in missing if name != "none"}}

    @model_validator(mode="after")
    def _memory_of_a_gpu_is_used(self) -> Self:
        if self.resources.min_gpu_memory_gib is not None and self.training.device == "cpu":
            raise ValueError(
                "resources.min_gpu_memory_gib is of GPUs, and training.device is cpu; leave one of the two out"
            )
        return self

    @property
    def gpus_needed(self) -> int:
        """GPUs without which a worker may not take the job; 0 = it will do with any, also with one that has none."""
        wanted, device = self.resources.gpus, self.training.device
        if device == "cpu":
            return 0
        if device == "cuda" or self.resources.min_gpu_memory_gib is not None:
            return max(1, wanted)
        return wanted if wanted > 1 else 0

    @property
    def methods(self) -> tuple[Teaching, ...]:
        """What the student is taught with; nothing for `none`."""
        if isinstance(self.method, list):
            return tuple(self.method)
        return () if self.method == "none" else (self.method,)

    @property
    def method_name(self) -> str:
        """`tid`, `tid+pkd`, `none`."""
        return "+".join(self.methods) or "none"

    def baseline_twin(self) -> "JobSpec":
        """The same student, recipe and seed without distillation; a teacher only where the student inherits from it."""
        teacher = self.teacher if self.student.inherit else None
        twin = {"name": f"{self.name[:109]} (baseline)", "teacher": teacher, "method": "none", "baseline": False}
        same = self.model_dump(exclude={"loss", *METHODS})
        return JobSpec.model_validate({**same, "loss": {"task": self.loss.task}, **twin})


def preset(recipe: str) -> dict[str, Any]:
    """The sections that a recipe fills, every default written out, for a student with ImageNet weights.

    Raises:
        KeyError: there is no such recipe.
    """
    standard = {"detector": "fcos_resnet50_fpn"} if RECIPES[recipe].detector is None else {}
    job = JobSpec.model_validate({"recipe": recipe, "student": standard, "dataset": "any"})
    sections = job.model_dump(mode="json", include={"student", "data", "training", "evaluation"})
    if standard:
        del sections["student"]["detector"]
    return {"recipe": recipe, **sections}


def load_spec(path: Path) -> JobSpec:
    """Read a job from a YAML or JSON file (JSON is YAML).

    Raises:
        ValueError: not YAML, or not a mapping.
        pydantic.ValidationError: a field is unknown, missing or out of range.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a mapping such as `student: {{detector: ...}}`, not {type(data).__name__}")
    return JobSpec.model_validate(data)
