"""What can be configured. This model is the single source: reader, JSON schema and documentation come from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mindspeed_moe.files import not_written_out

Device = Literal["auto", "npu", "cuda", "cpu"]
Implementation = Literal["auto", "packed", "reference", "stock"]


def _written_out(value: str) -> str:
    """Refuse a path that is not what it looks like; for a validator."""
    reason = not_written_out(value)
    if reason is not None:
        raise PydanticCustomError("path", "{reason}", {"reason": reason})
    return value


_Path = Annotated[str, AfterValidator(_written_out)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Dispatchers(_Section):
    """Which implementation of preprocess each token dispatcher gets."""

    alltoall: Implementation = Field("auto", description="MoEAlltoAllTokenDispatcher")
    alltoall_seq: Implementation = Field("auto", description="MoEAlltoAllSEQTokenDispatcher")


class Preprocess(_Section):
    """Choices inside an implementation; `auto` is what the dispatch table names first."""

    counts: Literal["auto", "sum", "byte_lanes", "matmul"] = Field(
        "auto", description="how the routing map is reduced to tokens per expert"
    )
    exchange: Literal["auto", "all_gather", "all_to_all"] = Field(
        "auto", description="the collective that exchanges the counts"
    )
    exchange_group: Literal["auto", "tp_ep", "ep", "dedicated"] = Field(
        "auto",
        description="the process group that the counts travel on; auto: the EP group where it holds the same ranks",
    )
    stream: Literal["auto", "current", "side"] = Field(
        "auto",
        description="where counts are exchanged and copied: on the current stream, at the least cost for the host, or "
        "on a side stream beside the first permutation",
    )
    tokens_per_expert: Literal["auto", "device", "host"] = Field(
        "auto", description="where the experts find their token counts; auto: where their class reads them"
    )
    max_slots: int = Field(
        8,
        ge=1,
        le=4096,
        description="bound on the buffers of a dispatcher; more than one is in use after calls that nobody finished",
    )


class Every(_Section):
    """Verification of some calls of a layer."""

    every: int = Field(ge=1, le=2**31 - 1, description="each of how many calls of a layer is verified")


class Telemetry(_Section):
    """Expert load that one can see: tokens per expert, who sends to whom, what is dropped."""

    enabled: bool = Field(False, description="true: keep the counts that are on the host anyway, for each layer")
    folder: _Path = Field(
        "mindspeed_moe_telemetry", min_length=1, description="where each rank writes its lines; made if need be"
    )
    interval: int = Field(1, ge=1, le=2**31 - 1, description="training steps that a record adds up")
    writers: tuple[Literal["jsonl", "tensorboard"], ...] = Field(
        ("jsonl",), min_length=1, description="jsonl: files in `folder`; tensorboard: Megatron's own writer"
    )
    max_megabytes: int = Field(
        256, ge=1, le=2**20, description="bound on the files of a rank in `folder`; the oldest go first"
    )

    @field_validator("writers", mode="before")
    @classmethod
    def _list_or_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("writers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("twice")
        return value


class Config(_Section):
    """The whole configuration; every key has a default, so an empty mapping is valid."""

    enabled: bool = Field(True, description="false: nothing is patched")
    device: Device = Field("auto", description="auto: npu if there is one, else cuda, else cpu")
    dispatchers: Dispatchers = Dispatchers()
    preprocess: Preprocess = Preprocess()
    tuned: _Path | None = Field(
        None, description="a file of `mindspeed-moe tune`: fills in what `preprocess` leaves at auto"
    )
    verify: Literal["off", "first", "always"] | Every = Field(
        "off",
        description="run the reference beside the chosen implementation and compare what consumers read; first: two "
        "calls of each layer; `every: N`: each N-th call",
    )
    dumps: _Path = Field(
        "mindspeed_moe_dumps", min_length=1, description="folder for what a failed verification leaves"
    )
    telemetry: Telemetry = Telemetry()
    mindspeed: Literal["auto", "off"] = Field(
        "auto",
        description="auto: become a feature of MindSpeed where it is on the path; off: patch without it, before or "
        "instead of its adaptor",
    )
    on_conflict: Literal["error", "skip", "replace"] = Field(
        "error", description="what to do with a target that somebody else has patched already"
    )

    @field_validator("verify", "mindspeed", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML 1.1 readers turn the word `off` into False before a mapping reaches us.
        return "off" if value is False else value

    @model_validator(mode="after")
    def _choices_have_an_effect(self) -> Config:
        defaults = Preprocess().model_dump()
        asked = [key for key, value in self.preprocess.model_dump().items() if value != defaults[key]]
        if asked and self.dispatchers.alltoall == self.dispatchers.alltoall_seq == "stock":
            raise PydanticCustomError(
                "no_effect",
                "has no effect when every dispatcher is `stock`",
                {
                    "key": f"preprocess.{asked[0]}",
                    "value": self.get(f"preprocess.{asked[0]}"),
                    "allowed": str(defaults[asked[0]]),
                },
            )
        if self.verify != "off" and not {self.dispatchers.alltoall, self.dispatchers.alltoall_seq} & {"auto", "packed"}:
            raise PydanticCustomError(
                "no_effect",
                "has no effect when no dispatcher is `auto` or `packed`: the reference has nothing to be compared with",
                {"key": "verify", "value": self.get("verify"), "allowed": "off"},
            )
        if self.tuned is not None and self.dispatchers.alltoall in ("stock", "reference"):
            raise PydanticCustomError(
                "no_effect",
                f"has no effect when dispatchers.alltoall is `{self.dispatchers.alltoall}`",
                {
                    "key": "tuned",
                    "value": self.tuned,
                    "allowed": "no such key, or dispatchers.alltoall: auto or packed",
                },
            )
        return self

    def with_choices(self, choices: Mapping[str, str]) -> Config:
        """Return the configuration with choices for the keys of `preprocess` that are auto; others win over them."""
        own = self.preprocess.model_dump()
        filled = {key: value for key, value in choices.items() if own[key] == "auto"}
        return self.model_copy(update={"preprocess": self.preprocess.model_copy(update=filled)})

    def get(self, dotted_key: str) -> Any:
        """Return the value at a dotted key such as `preprocess.exchange`."""
        value: Any = self
        for part in dotted_key.split("."):
            value = getattr(value, part)
        return value
