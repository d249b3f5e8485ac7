"""Pictures of what is found and learned: detections, label maps, feature maps, the position bias, curves."""
