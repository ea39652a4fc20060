"""Stages that run each in a process of its own, at their own speed, and survive one another."""

from decoupled.asynchronous.report import AsyncOptions, AsyncResult, StageEvent, StageReport
from decoupled.asynchronous.supervisor import Supervisor, run_asynchronously

__all__ = ["AsyncOptions", "AsyncResult", "StageEvent", "StageReport", "Supervisor", "run_asynchronously"]
