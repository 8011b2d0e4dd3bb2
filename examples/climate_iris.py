"""Average class shares over a region with Iris, which opens the file as cubes with areas, classes and companions.

    pip install scitools-iris "xxhash<4"
    python examples/climate_iris.py --map demo-output/map.zarr --of Corn

`xgfm demo` writes the map; any store of a result will do. (Iris 3.14 does not work with xxhash 4.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import iris
import iris.analysis
import numpy as np

import xgfm


def main() -> None:
    """Sum a map in cells, write it, and average it by the ground that is seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, default=Path("demo-output/map.zarr"), help="a store of a result")
    parser.add_argument("--grid", default="0.02deg", help="climate grid")
    parser.add_argument("--of", default="Corn", help="class")
    parser.add_argument("--min-valid", type=float, default=0.5, help="least share of a cell that the map must cover")
    parser.add_argument("--out", type=Path, default=Path("fractions.nc"))
    options = parser.parse_args()
    fractions = xgfm.to_climate(options.map, options.grid, min_valid=options.min_valid)
    xgfm.to_netcdf(fractions, options.out, overwrite=True)

    cubes = iris.load(options.out)
    share = cubes.extract_cube(iris.Constraint(cube_func=lambda cube: cube.var_name == "area_fraction"))
    print(share.summary(shorten=True))
    print("measures:", [m.name() for m in share.cell_measures()])
    print("companions:", sorted(a.var_name for a in share.ancillary_variables()))
    # A slice of one, not a number: Iris 3.14 cannot take a single string out of a coordinate of strings.
    number = share.coord("name of the class").points.tolist().index(options.of)
    of_class = share[number : number + 1]
    # By the area of cells alone, one of which the map sees a corner would count as much as one that it fills.
    seen = of_class.ancillary_variable("share of the cell that the map gives a class").data
    ground = np.broadcast_to(of_class.cell_measure("cell_area").data * seen, of_class.shape)
    mean = of_class.collapsed(["latitude", "longitude"], iris.analysis.MEAN, weights=ground)
    print(f"{options.of}: {100 * float(mean.data.item()):.2f} % of the ground that is seen")


if __name__ == "__main__":
    main()
