SIZES = (2, 3, 1)
