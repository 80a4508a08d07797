"""Archives of uploaded datasets: among the artifacts where hosts share no folder, and unpacked by a child process."""
