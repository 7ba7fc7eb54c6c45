"""A member's network trained by Lightning: AdamW, early stopping, and a checkpoint after every epoch."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from models.forecasters.base import Forecaster
from models.forecasters.factory import build_forecaster
from models.loading import Background, moved
from models.panel import Batch, SequentialLoader, WindowLoader
from tasks.member import DivergedError, MemberSpec, Report
from tasks.prepare import Prepared

PREDICT_BATCH = 256
PRECISION: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's names."""


class MemberModule(L.LightningModule):
    """Lightning's view of a forecaster: AdamW under a one-cycle schedule, windows drawn anew each epoch."""

    def __init__(self, forecaster: Forecaster, spec: MemberSpec, prepared: Prepared) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.spec = spec
        self._prepared = prepared
        self.history: list[dict[str, float]] = []

    def train_dataloader(self) -> WindowLoader | Background:
        """A loader that depends on (seed, epoch) alone; dropout is reseeded likewise, so a resumed run repeats."""
        train, epoch = self.spec.params.train, self.current_epoch
        torch.manual_seed(self.spec.seed * 1_000_003 + epoch)
        windows = self._prepared.fold("train", "fit networks")
        loader = WindowLoader(
            self._prepared.panel,
            windows,
            self.spec.config.batch_size,
            train.batches_per_epoch,
            self.spec.seed,
            epoch,
            train.id_dropout,
        )
        return Background(loader) if self.trainer.strategy.root_device.type == "cuda" else loader

    def val_dataloader(self) -> SequentialLoader:
        windows = self._prepared.fold("early_stopping", "choose epoch")
        return SequentialLoader(self._prepared.panel, windows, PREDICT_BATCH)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return moved(batch, device)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        loss = self.forecaster.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["groups"]))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("early_stopping_loss", self.forecaster.loss(batch), batch_size=len(batch["groups"]))

    def configure_optimizers(self) -> Any:
        train, config = self.spec.params.train, self.spec.config
        decayed: list[torch.nn.Parameter] = []
        plain: list[torch.nn.Parameter] = []
        for parameter in self.forecaster.parameters():
            exempt = parameter.dim() < 2 or getattr(parameter, "_no_weight_decay", False)
            (plain if exempt else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        fused = train.precision == "float32"  # under autocast Lightning clips no gradients of a fused optimizer
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
        steps = config.max_epochs * -(-train.batches_per_epoch // train.accumulate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        row = {key: float(metrics[key]) for key in ("train_loss", "early_stopping_loss")}
        if not all(value == value and abs(value) != float("inf") for value in row.values()):
            raise DivergedError(
                f"{self.spec.family} member {self.spec.index} diverged in epoch {self.current_epoch + 1}: its loss is not a "
                f"number; lower forecasters.{self.spec.family}.learning_rate (the last good checkpoint is kept)"
            )
        self.history.append({"epoch": float(self.current_epoch + 1), **row})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]


class EpochReport(Callback):
    """Tells the parent process after every epoch how far the member has come."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.report(trainer.current_epoch + 1, float(trainer.callback_metrics["early_stopping_loss"]))


def descend(spec: MemberSpec, prepared: Prepared, report: Report) -> tuple[Forecaster, list[dict[str, float]]]:
    """The network of the best epoch and its losses by epoch, trained from the start or from a checkpoint."""
    train = spec.params.train
    torch.manual_seed(spec.seed)
    module = MemberModule(build_forecaster(spec.family, prepared.panel.schema, spec.config), spec, prepared)
    best = ModelCheckpoint(
        dirpath=spec.folder, filename="best", monitor="early_stopping_loss", save_top_k=1, enable_version_counter=False,
        save_on_train_epoch_end=True,
    )  # fmt: skip
    last = ModelCheckpoint(dirpath=spec.folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = L.Trainer(
        max_epochs=spec.config.max_epochs,
        accelerator=train.accelerator,
        devices=train.devices,
        strategy=train.strategy,
        gradient_clip_val=train.gradient_clip,
        precision=PRECISION[train.precision],
        accumulate_grad_batches=train.accumulate,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=spec.folder,
        callbacks=[
            EarlyStopping("early_stopping_loss", patience=train.patience, check_on_train_epoch_end=True),
            best,
            last,
            EpochReport(report),
        ],
    )
    checkpoint = spec.folder / "last.ckpt"
    trainer.fit(module, ckpt_path=str(checkpoint) if checkpoint.exists() else None, weights_only=False)
    module.load_state_dict(torch.load(best.best_model_path, map_location="cpu", weights_only=False)["state_dict"])
    return module.forecaster.cpu(), module.history
