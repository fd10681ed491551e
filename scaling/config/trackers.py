"""Where metrics go besides the store."""

from typing import Literal

from scaling import schema


class Tracking(schema.Config):
    """Where metrics go besides the store. wandb "online" needs WANDB_API_KEY or a login; "offline" needs neither."""

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "scaling"
    entity: str | None = None
