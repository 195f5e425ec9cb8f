"""Find filaments in micrographs: graphs over detections, learned and linked."""
