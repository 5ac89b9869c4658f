"""Certificates in words."""

from __future__ import annotations

from rdi.checks import LINF
from rdi.records import CertificateRecord, Costs
from rdi.report import tables
from rdi.threats import ThreatModel

LOOSE = ", by bounds over the L-infinity ball of that radius, which holds it: sound, and far from tight"


def lines(record: CertificateRecord, costs: Costs) -> str:
    """Render a certificate for a terminal: accuracy, where images may leave, and what they may cost at most."""
    may = "/".join(f"{100 * share:.0f}" for share in record.exit_may)
    certified = "/".join(tables.percent(share) for share in record.exit_accuracy)
    interval = f"{tables.percent(record.accuracy_low)}-{tables.percent(record.accuracy_high)}"
    return (
        f"exit policy {record.threshold}, {record.samples:,} {record.split} images of {record.data}, any image within "
        f"{ThreatModel(record.eps, record.norm)}{LOOSE if record.norm != LINF else ''}\n"
        f"certified accuracy {tables.percent(record.accuracy)} % "
        f"(95 %: {interval}); each exit alone {certified} %\n"
        f"certified cost at most {record.mean_macs / 1e6:.2f} M MACs per image, {record.max_macs / 1e6:.2f} M for the "
        f"costliest; saved {tables.percent(record.saving)} % of the backbone without exits, "
        f"{costs.macs_plain / 1e6:.2f} M\n"
        f"may be made to leave at exit {'/'.join(map(str, range(len(record.exit_may))))}: {may} %"
    )
