"""What is learned from: the check of a data set, drawn scenes, images in folders of their classes."""
