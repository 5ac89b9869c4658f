"""Records: frozen dataclasses <-> strict JSON, written whole or not at all."""

from rdi.records.files import STRICT, Config, Plain, RuleNode, read, to_dict, write
from rdi.records.judged import (
    CertificateRecord,
    CorruptionRecord,
    EvalRecord,
    Expected,
    FrontRecord,
    Thresholds,
    WorstRecord,
)
from rdi.records.made import (
    BankManifest,
    BoundsManifest,
    Costs,
    DataInfo,
    Environment,
    GalleryRecord,
    Manifest,
    Selection,
    Size,
)
from rdi.records.measured import BenchRecord, BenchRow, Check, HealthRecord

__all__ = [
    "STRICT",
    "BankManifest",
    "BenchRecord",
    "BenchRow",
    "BoundsManifest",
    "CertificateRecord",
    "Check",
    "Config",
    "CorruptionRecord",
    "Costs",
    "DataInfo",
    "Environment",
    "EvalRecord",
    "Expected",
    "FrontRecord",
    "GalleryRecord",
    "HealthRecord",
    "Manifest",
    "Plain",
    "RuleNode",
    "Selection",
    "Size",
    "Thresholds",
    "WorstRecord",
    "read",
    "to_dict",
    "write",
]
