"""What ``make dist`` makes: tested from what was built, not from the tree."""
