"""Maps of embeddings, with measures of how far each may be believed."""
