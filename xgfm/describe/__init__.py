"""What a result is, for catalogues and auditors: STAC, W3C PROV."""
