PYTHON ?= python3
STACK ?= openmmlab
JOBS ?= 2
PY = $(if $(filter onedl,$(STACK)),.venv-onedl,.venv)/bin/python
DEMO = work_dirs/demo
DET = configs/mmdet/retinanet_cmt_ti_shapes.py
SEG = configs/mmseg/upernet_cmt_ti_shapes.py
export PYTHONUNBUFFERED = 1

.PHONY: help setup browser test test-stacks lint docs demo demo-sheet demo-curves demo-report demo-seg shapes \
	large-shapes gpu-report

help:
	@echo "make setup     set up alone; with OPERATORS=compiled, mmcv is built (10 minutes, needs g++)"
	@echo "make demo      set up, train RetinaNet with CMT-Ti on drawn scenes, evaluate, draw,"
	@echo "               and make a page of the run (tools/report.py): work_dirs/demo/detection_report.html"
	@echo "make demo-seg  the same with UperNet"
	@echo "make test      set up, run the tests; with STACK=onedl on the onedl forks of OpenMMLab's packages"
	@echo "               in two processes, or JOBS=N; each takes whole files, as tests of one share what they trained"
	@echo "make test-stacks  the core tests with old and new versions of torch, numpy and mmengine (20 GB)"
	@echo "make gpu-report  set up, try everything on a GPU in 20 minutes, write work_dirs/gpu/gpu_report.md"
	@echo "make docs      set up, build the site of docs/, benchmarks/ and the API: site/index.html"
	@echo "make lint      set up, check the code against the rules of pyproject.toml"

# OPERATORS=compiled builds mmcv's own operators, OPERATORS=torchvision does without; neither keeps what is there.
setup:
	@$(PYTHON) tools/setup_env.py --stack $(STACK) $(if $(OPERATORS),--operators $(OPERATORS))

# Some tests look at pages in Chromium, and are skipped without.
browser:
	@{ command -v chromium || command -v google-chrome || command -v chromium-browser; } > /dev/null || { \
		test "$$(id -u)" = 0 && { apt-get install -qq -y --no-install-recommends chromium || \
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; }; } > /dev/null 2>&1; } || \
		echo "no Chromium: tests of pages are skipped (apt-get install chromium)"

# Users have no compiler, so no test may need one.
test: setup browser
	CC=false CXX=false $(PY) -m pytest -n $(JOBS) --dist loadfile
	$(PY) tools/test_stacks.py oldest

test-stacks:
	$(PYTHON) tools/test_stacks.py

lint: setup
	$(PY) -m ruff check .

# Strict: a dead link, a page that nothing leads to, or a docstring that names what is not there fails.
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build
	@echo "==> site/index.html"

shapes: setup
	$(PY) tools/make_shapes.py $(DEMO)/shapes --images 800 --val 100 --seed 0 --size 128x96

large-shapes: setup
	$(PY) tools/make_shapes.py $(DEMO)/large_shapes --images 800 --val 100 --seed 0 --size 160x128

# Eight images a step: of two processes, by CPUs or GPUs, or of one on a lone GPU.
PROCESSES = $$($(PY) -c 'import torch; print(1 if torch.cuda.device_count() == 1 else 2)')
TRAIN_DEMO = n=$(PROCESSES); PYTHON=$(PY) tools/dist_train.sh $(1) $$n --work-dir $(2) \
	--cfg-options train_dataloader.batch_size=$$((8 / n))

demo: shapes
	rm -rf $(DEMO)/retinanet_cmt_ti
	$(call TRAIN_DEMO,$(DET),$(DEMO)/retinanet_cmt_ti)
	$(PY) tools/test.py $(DET) "$$(cat $(DEMO)/retinanet_cmt_ti/last_checkpoint)" \
		--work-dir $(DEMO)/retinanet_cmt_ti/test --out $(DEMO)/detections.pkl
	@$(MAKE) --no-print-directory -j 2 demo-sheet demo-curves demo-report
	@sed -n 's/.*"coco\/bbox_mAP": \([0-9.]*\).*/==> RetinaNet with CMT-Ti, from scratch on 800 drawn scenes: box mAP \1 on 100 others/p' \
		$$(ls -t $(DEMO)/retinanet_cmt_ti/test/*/*.json | head -1); echo
	@echo "==> $(DEMO)/detections/sheet.png: detections beside truth"
	@echo "==> $(DEMO)/detection_curves.png: loss and mAP"
	@echo "==> $(DEMO)/detection_report.html: the run on one page, for a browser"
	@echo "==> your own images: docs/own_dataset.md"

demo-sheet:
	$(PY) tools/draw_detections.py $(DET) $(DEMO)/detections.pkl --out $(DEMO)/detections

demo-curves:
	$(PY) tools/plot_training.py $(DEMO)/retinanet_cmt_ti --out $(DEMO)/detection_curves.png \
		--metrics 'mAP(_50)?$$'

demo-report:
	$(PY) tools/report.py $(DEMO)/retinanet_cmt_ti --predictions $(DEMO)/detections.pkl \
		--out $(DEMO)/detection_report.html

demo-seg: large-shapes
	rm -rf $(DEMO)/upernet_cmt_ti
	$(call TRAIN_DEMO,$(SEG),$(DEMO)/upernet_cmt_ti)
	$(PY) tools/test.py $(SEG) "$$(cat $(DEMO)/upernet_cmt_ti/last_checkpoint)" \
		--work-dir $(DEMO)/upernet_cmt_ti/test --out $(DEMO)/label_maps
	$(PY) tools/draw_segmentation.py $(SEG) $(DEMO)/label_maps --out $(DEMO)/segmentation
	$(PY) tools/plot_training.py $(DEMO)/upernet_cmt_ti --out $(DEMO)/segmentation_curves.png
	$(PY) tools/report.py $(DEMO)/upernet_cmt_ti --predictions $(DEMO)/label_maps \
		--out $(DEMO)/segmentation_report.html
	@echo "==> $(DEMO)/segmentation/sheet.png: label maps beside truth"
	@echo "==> $(DEMO)/segmentation_curves.png: loss and mIoU"
	@echo "==> $(DEMO)/segmentation_report.html: the run on one page, for a browser"

gpu-report: setup
	$(PY) tools/gpu_report.py work_dirs/gpu
