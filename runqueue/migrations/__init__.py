"""The schema's numbered steps, applied in order by `runqueue.schema`.

A step is frozen once released: it repeats what it needs instead of importing the models, for a
database of any age must go through the same steps.
"""
