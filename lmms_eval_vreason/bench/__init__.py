"""``vreason bench``: what the method costs beside plain ``generate``, on shapes with random weights."""
