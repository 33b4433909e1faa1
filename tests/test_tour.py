"""docs/tour.ipynb and the Python of docs/python.md, run unchanged in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.shared import REPOSITORY, users_environment

DOCS = REPOSITORY / "docs"
MOST_SECONDS = 180
REQUIRED = os.environ.get("VAE_NOTEBOOK") == "required"  # then a skip is a failure


def cells(kind):
    return [cell for cell in json.loads((DOCS / "tour.ipynb").read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_outputs():
    assert cells("code")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))


@pytest.mark.slow
def test_the_notebook_runs_and_so_does_the_python_of_the_page(tmp_path, monkeypatch):
    if not REQUIRED:
        pytest.importorskip("nbclient", reason="requirements-notebook.txt is not installed")
        pytest.importorskip("ipykernel", reason="requirements-notebook.txt is not installed")
    import nbformat
    from nbclient import NotebookClient

    for name in ("utils", "experiments", "docs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "params.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in set(os.environ) - set(users_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    notebook = nbformat.read(tmp_path / "docs" / "tour.ipynb", as_version=4)
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=MOST_SECONDS, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 8
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    runs = tmp_path / "predictions" / "tour"
    report = json.loads((runs / "mnist-ce-z20" / "report.json").read_text())
    assert f"mean {report['test_elbo']:.1f}: the ELBO of the report" in printed
    losses = [float(value) for value in re.findall(r"reconstruction +([\d.]+) nats, KL", printed)]
    assert losses[1] < losses[0]  # the autoencoder's is lower, as the notebook says

    shutil.move(runs / "mnist-ce-z20", tmp_path / "predictions")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    command = [sys.executable, "-W", "error", "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, env=users_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions" / "from_python" / "comparison.png").exists()
