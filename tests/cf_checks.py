"""What the IOOS compliance checker says of a netCDF file."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import xarray as xr


def complaints(result: xr.Dataset, path: Path) -> str:
    """Write a Dataset as netCDF by xarray alone, and return what the checker finds in it."""
    result.to_netcdf(path)
    return complaints_of(path)


def complaints_of(path: Path) -> str:
    """Return what the checker finds in a file against CF-1.11: '' for nothing."""
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    CheckSuite.load_all_available_checkers()
    said = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        passed, failed_to_run = ComplianceChecker.run_checker(str(path), ["cf:1.11"], 0, "strict")
    return "" if passed and not failed_to_run else said.getvalue()
