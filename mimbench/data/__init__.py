"""Data as files in the field's formats: the toy data, its checks, and the images as training sees them."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")  # of images
