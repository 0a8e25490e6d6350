"""lance: Lance-3B, of BAGEL's lineage. Its arithmetic; nothing opens its weights yet."""
