"""Stages that run each in a process of its own, at their own speed, and survive one another."""

from decoupled.asynchronous.report import AsyncOptions, AsyncResult, StageEvent, StageReport
from decoupled.asynchronous.run import run_asynchronously
from decoupled.asynchronous.supervisor import Supervisor

__all__ = ["AsyncOptions", "AsyncResult", "StageEvent", "StageReport", "Supervisor", "run_asynchronously"]
