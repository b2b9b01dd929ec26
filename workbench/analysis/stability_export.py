"""The laboratory's curves as a table that any spreadsheet opens."""

import csv
import io

import xarray as xr


def curves_csv(result: xr.Dataset) -> str:
    """Every number that has at most one dimension, a row each: variable, dimension, at, value; all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variable", "dimension", "at", "value"])
    for name, variable in result.data_vars.items():
        if variable.ndim == 0:
            writer.writerow([name, "", "", variable.values.item()])
        elif variable.ndim == 1:
            dimension = str(variable.dims[0])
            at = result[dimension].values
            writer.writerows([name, dimension, a, v.item()] for a, v in zip(at, variable.values, strict=True))
    writer.writerows(["first_violation", f"{c} {a}", "", int(result["first_violation"].sel(condition=c, axis=a))]
                     for c in result["condition"].values for a in result["axis"].values)  # fmt: skip
    return text.getvalue()
