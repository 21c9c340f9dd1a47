"""Tests of making, checking and publishing exports."""
