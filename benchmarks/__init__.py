"""Measurements. They speak HTTP to a running server and never import it; results/ keeps what they saw."""
