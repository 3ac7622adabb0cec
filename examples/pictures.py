"""Draws what an example has learnt, where `--picture=FILE` requests it; needs matplotlib.

The name of the file says its format, such as `.png`.
"""

import os
from pathlib import Path

RIGHT, WRONG = "#3f51b5", "#d81b60"


def curves(file, lines, x_label, y_label, first=0):
    """Lines by name, each drawn thinner than the one before, so that equal ones are all seen.

    Args:
        file: where to save the picture.
        lines: `{name: values}`.
        x_label: what is counted along the lines.
        y_label: what they show.
        first: the number of the first value.
    """
    figure, axes = _figure(6.4, 3.2)
    for place, (name, values) in enumerate(lines.items()):
        width = 1.5 + 2.5 * (len(lines) - 1 - place)
        x = range(first, first + len(values))
        axes.plot(x, values, label=name, linewidth=width, color=f"C{place}")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, file)


def grid(file, rows, wrong=None):
    """Rows of images, each with its name.

    Args:
        file: where to save the picture.
        rows: `{name: images}`, as many images `(height, width)` for each name.
        wrong: for each row, which of its images have a red frame; None for none.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    images = np.array([np.asarray(row).reshape(*row.shape[:3]) for row in rows.values()])
    down, across, height, width = images.shape
    # With a gap of one pixel between them they are one image, which is quick to draw.
    tiled = np.full((down, height + 1, across, width + 1), np.nan)
    tiled[:, :height, :, :width] = images.transpose(0, 2, 1, 3)
    names = 0.3 + 0.09 * max(map(len, rows))
    figure, axes = _figure(0.5 * across + names, 0.5 * down + 0.1)
    axes.imshow(tiled.reshape(down * (height + 1), -1)[:-1, :-1], cmap="gray_r")
    for i, j in np.argwhere(np.zeros((down, across)) if wrong is None else wrong):
        corner = (j * (width + 1) - 1, i * (height + 1) - 1)
        axes.add_patch(Rectangle(corner, width + 1, height + 1, fill=False, color=WRONG, lw=2))
    axes.set(xticks=[], yticks=[i * (height + 1) + (height - 1) / 2 for i in range(down)])
    axes.set_yticklabels(rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, file)


def confusion(file, truth, found, names):
    """How many rows of each class (down) were found to be of which (across).

    Args:
        file: where to save the picture.
        truth: numbers of classes `(rows,)`.
        found: likewise.
        names: of the classes.
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(truth, found)
    size = 1.2 + max(0.36, 0.08 * max(map(len, map(str, names)))) * len(names)
    figure, axes = _figure(size, size)
    axes.imshow(counts, cmap="Blues")
    for (i, j), count in ((at, counts[at]) for at in zip(*counts.nonzero(), strict=True)):
        color = "white" if 2 * count > counts.max() else "black"
        axes.text(j, i, count, ha="center", va="center", color=color)
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="found", ylabel="true")
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)
    _save(figure, file)


def scatter(file, truth, found, x_label, y_label):
    """Points that lie on the diagonal where `found` is right."""
    figure, axes = _figure(4.4, 4.2)
    low, high = min(truth.min(), found.min()), max(truth.max(), found.max())
    axes.axline((low, low), (high, high), color="#999999", linewidth=1)
    axes.scatter(truth, found, s=12, alpha=0.6, color=RIGHT, linewidths=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    _save(figure, file)


def text(file, lines, width=64):
    """Texts whose characters are the darker, the more bits each of them took.

    Args:
        file: where to save the picture.
        lines: `{title: (text, bits)}`, with `bits` a number for each character.
        width: characters in a line.
    """
    import numpy as np

    heights = [-(-len(text) // width) for text, _ in lines.values()]
    figure, axes = _figure(0.11 * width, 0.22 * (sum(heights) + 1.6 * len(lines)))
    top = 0.0
    for (title, (text, bits)), height in zip(lines.items(), heights, strict=True):
        axes.text(0, top + 0.8, title, va="center", weight="bold", size=9)
        top += 1.6
        shades = np.zeros(height * width)
        shades[: len(text)] = bits
        place = (0, width, top + height, top)
        axes.imshow(shades.reshape(height, width), "Reds", vmin=0, vmax=10, extent=place)
        for i, character in enumerate(text):
            shown = character if character.isprintable() else "¶"
            # One of many, of which none needs to be asked how much room it takes.
            at = {"ha": "center", "va": "center", "family": "monospace", "size": 8}
            axes.text(i % width + 0.5, top + i // width + 0.5, shown, **at, in_layout=False)
        top += height
    axes.set(xlim=(0, width), ylim=(top, 0), aspect="auto")
    axes.axis("off")
    _save(figure, file)


def _figure(width, height):
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure, file):
    """Saves under another name first: the workers of a job all draw the same."""
    path = Path(file)
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(draft, dpi=80)
    os.replace(draft, path)
