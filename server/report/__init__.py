"""The compliance report: models, software, keys, weak settings and the audit log, and bills of materials."""
