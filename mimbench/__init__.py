"""mimbench reproduces the comparison tables of masked-image-modelling papers."""
