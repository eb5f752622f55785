"""A Siamese tracker: its template branch runs once per object, its search branch in every frame."""
