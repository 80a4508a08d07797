"""The demo dataset, drawn on this machine. Free of torch; scikit-learn is loaded when it is drawn."""

from pathlib import Path

from client.errors import ClientError


def write(folder: Path, *, images: int, seed: int) -> None:
    """Write `images` training scenes and 3 validation scenes for every 10 of them, as COCO JSON and JPEG.

    Raises:
        ClientError: the folder holds something else, the disk refuses, or scikit-learn is not installed.
    """
    try:
        from tid_core.data.synthetic import write_demo_data

        write_demo_data(folder, images=images, seed=seed)
    except ImportError as error:
        raise ClientError(f'the demo data needs {error.name}: pip install "tid-service[embedded]"') from error
    except FileExistsError as error:
        raise ClientError(str(error)) from error
    except OSError as error:
        raise ClientError(f"cannot write the demo data to {folder}: {error.strerror or error}") from error
