"""What a receipt says, in the forms that others check: in-toto provenance, CycloneDX BOM."""
