"""Measurements. They speak HTTP to a server that they start, and never import it; results/ keeps what they saw."""
