"""What the methods that change weights share: ROME, MEMIT, AlphaEdit, UltraEdit, FT-M, WilKE, CoachHooK."""
