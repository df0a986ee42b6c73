"""Settings of PPO."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from align.core.params import MODEL_NAME, Settings, WarmupSteps


class RewardSettings(Settings):
    """An entry of `ppo.rewards`: the reward model or a checker, and its weight in the sum."""

    model: Literal["reward"] | None = None
    checker: str | None = None
    weight: float = Field(ge=-1e6, le=1e6)

    @model_validator(mode="after")
    def _is_one_reward(self) -> Self:
        if (self.model is None) == (self.checker is None):
            raise ValueError("{model: reward, weight: W} or {checker: package.module:function, weight: W}")
        if self.weight == 0:
            raise ValueError("an entry with a weight other than 0, or none at all")
        return self

    @property
    def column(self) -> str:
        """Its column in data/ppo/history.csv."""
        return "mean_score" if self.checker is None else f"reward_{self.checker.rpartition(':')[2]}"


class TruncatedSettings(Settings):
    """`ppo.truncated`: what becomes of responses that `max_new_tokens` cuts off; see `truncated_rewards`."""

    mode: Literal["keep", "penalty", "score", "mask", "soft_punish"]
    value: float | None
    soft_punish_cache: int | None = Field(ge=1)

    @model_validator(mode="after")
    def _has_what_its_mode_needs(self) -> Self:
        if (self.value is None) != (self.mode in ("keep", "mask")):
            raise ValueError("a value where mode is penalty, score or soft_punish, and value null otherwise")
        if self.value is not None and self.value < 0 and self.mode != "score":
            raise ValueError("a value of 0 or more, which is taken off")
        if (self.soft_punish_cache is None) != (self.mode != "soft_punish"):
            raise ValueError("a soft_punish_cache (tokens) where mode is soft_punish, and null otherwise")
        return self


class PPOSettings(Settings):
    """Section `ppo` of params.yaml, named as in TRL."""

    init: str = Field(pattern=f"^{MODEL_NAME.pattern}$")
    prompts: str = Field(min_length=1)
    rewards: list[RewardSettings] = Field(min_length=1)
    advantage: Literal["gae", "rloo", "grpo"]
    num_generations: int = Field(ge=1)
    num_updates: int = Field(ge=1)
    rollout_batch_size: int = Field(ge=2)
    mini_batch_size: int = Field(ge=1)
    per_device_train_batch_size: int = Field(ge=1)
    num_ppo_epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    value_learning_rate: float = Field(gt=0)
    warmup_steps: WarmupSteps
    value_layers: int | None = Field(ge=1)
    kl_coef: float = Field(ge=0)
    adaptive_kl_target: float | None = Field(gt=0)
    adaptive_kl_horizon: int = Field(ge=1)
    target_kl: float | None = Field(gt=0)
    cliprange: float = Field(gt=0, lt=1)
    cliprange_value: float = Field(gt=0)
    gamma: float = Field(ge=0, le=1)
    lam: float = Field(ge=0, le=1)
    max_grad_norm: float = Field(gt=0)
    gradient_checkpointing: bool
    truncated: TruncatedSettings
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(ge=1)
    max_prompt_length: int = Field(ge=1)

    @property
    def uses_model(self) -> bool:
        """Whether the reward model is one of the rewards."""
        return any(reward.model is not None for reward in self.rewards)

    @field_validator("rewards")
    @classmethod
    def _rewards_differ(cls, value: list[RewardSettings]) -> list[RewardSettings]:
        columns = [reward.column for reward in value]
        if len(columns) != len(set(columns)):
            raise ValueError("rewards of which no two are the model, or checkers with one function name")
        return value

    @field_validator("init")
    @classmethod
    def _init_has_an_adapter(cls, value: str) -> str:
        if value == "base":
            raise ValueError("a trained model, such as m0; the base has no adapter")
        return value

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.rollout_batch_size % self.mini_batch_size or self.mini_batch_size % self.per_device_train_batch_size:
            raise ValueError(
                "sizes where rollout_batch_size / mini_batch_size / per_device_train_batch_size divide evenly"
            )
        if self.rollout_batch_size % self.num_generations:
            raise ValueError("a rollout_batch_size that num_generations divides: it counts responses, not prompts")
        if self.advantage != "gae" and self.num_generations < 2:
            raise ValueError(f"num_generations 2 or more: {self.advantage} compares the responses to a prompt")
        if self.advantage == "gae" and not self.uses_model:
            raise ValueError(
                "rewards with {model: reward}, or advantage rloo or grpo: the critic of gae starts as the reward model"
            )
        if (self.truncated.soft_punish_cache or 0) > self.max_new_tokens:
            raise ValueError("a truncated.soft_punish_cache of at most max_new_tokens, the end of which it is")
        return self
