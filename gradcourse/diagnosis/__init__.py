"""What is wrong with the gradient flow of anybody's model: a report on one batch, a monitor of a training run."""

from gradcourse.diagnosis.api import diagnose
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.monitoring import Monitor, monitor
from gradcourse.diagnosis.report import Finding, LayerReport, Report

__all__ = ["Finding", "LayerReport", "Monitor", "MonitorHistory", "Report", "diagnose", "monitor"]
