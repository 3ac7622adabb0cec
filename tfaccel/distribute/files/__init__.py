"""Who writes files: one policy for `model.save`, export, checkpoints and callbacks.

It holds for a job of several workers; one process writes as Keras does. All of its code is here.

**Who writes what.** A worker of `multi_worker_mirrored` holds all of every variable, one of a mesh
its slices.

* `save`, `save_weights` and `export` to a local path, on replicas: every worker writes the whole
  file, since each may have its own disk. On a mesh, and to a remote path (``gs://…``, one for all):
  the chief writes for all.
* `ModelCheckpoint`, `BackupAndRestore`, `CSVLogger` and `TensorBoard`: the chief decides whether to
  write, and writes.
* `tfaccel.checkpoint.save`: every worker its slices, the chief the rest.
* Anything else is the script's own, which checks `tfaccel.is_chief`.

**When all must call.** Wherever one worker writes for all, every worker must make the same call, at
the same point: the others take part where variables are gathered, and wait, so that all may read
the file afterwards. Where each worker writes its own file, no worker waits, and calling on one
worker only is fine too.

**A failure of the chief is every worker's error, at once** (`one_writer.py`). The others would
otherwise wait for it in their next step. A worker that writes its own file fails alone.

**Files are atomic** (`atomic.py`). A local path is complete at any time: data are written next to
the target and renamed, a directory in two renames. On a remote filesystem a single file appears
when it is complete, and a directory is replaced file by file.

What a strategy provides for this is `one_writer.WritingStrategy`.
"""
