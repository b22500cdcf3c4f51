"""The databases that a queue can be in; `base` is what each of them must do."""
