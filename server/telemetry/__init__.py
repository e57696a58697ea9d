"""Telemetry kept at home: samples of the metrics in a bounded ring of files, sent when there is a network."""
