"""The kinds of errors that `tid_core.error_breakdown` tells apart. Free of torch."""

ERROR_KINDS = {
    "classification": "well placed on an object of another class",
    "localisation": "right class, but badly placed (IoU .1 to .5)",
    "both": "beside an object of another class",
    "duplicate": "on an object that was found already",
    "background": "where no object is",
    "missed": "objects that nothing was near enough to find",
}
"""Kind to what its errors are, in the order in which they are shown."""
