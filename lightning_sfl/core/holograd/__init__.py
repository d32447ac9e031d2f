"""HoloGrad: a gradient as a few scalars along directions that everybody regenerates from a seed."""
