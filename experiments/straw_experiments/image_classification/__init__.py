"""Images: the article's experiment, its controls, poses and hypernetworks."""
