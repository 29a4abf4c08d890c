"""CoachHooK, also COMEBA-HK (arXiv 2403.05330)."""
