"""The Triton sources. What launches them is one level up."""
