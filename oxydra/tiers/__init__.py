"""What isolates the guests: `registry` lists the tiers, `base` says what one is."""
