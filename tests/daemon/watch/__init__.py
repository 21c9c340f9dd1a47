"""Tests of watched export directories."""
