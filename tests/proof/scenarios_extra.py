"""Scenarios.
"""
from __future__ import annotations
from .scenarios import Scenario
SCENARIOS: list[Scenario] = []
